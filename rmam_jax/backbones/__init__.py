"""Networks from pixels to a feature map, one file a family, and the registry that names them."""
