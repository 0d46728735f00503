"""For services: may this user edit this lead, who owns it, and the record of every attempt."""
