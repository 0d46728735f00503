"""What a chain of revisions must hold: one module for each rule, and in each a function that yields what is wrong."""
