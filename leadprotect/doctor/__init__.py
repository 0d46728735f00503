"""For whoever answers for the database: whether what stands in it is what leadprotect made."""
