"""Pages: their skeleton, style, tables and charts; one file each, without script and network."""
