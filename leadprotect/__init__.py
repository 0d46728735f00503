"""leadprotect."""
