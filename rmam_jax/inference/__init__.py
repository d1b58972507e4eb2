"""Any images in, labels and regions out."""
