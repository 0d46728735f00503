"""For the operator: gives every lead with a qualifying activity its owner, while the database is live."""
