"""Networks from a feature map to scores and regions, one file each, and the registry that names them."""
