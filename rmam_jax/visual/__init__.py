"""What people look at: pictures, figures like the paper's, and a page with every image of a split."""
