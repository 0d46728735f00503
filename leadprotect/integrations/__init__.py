"""For services by framework: who acts in a request, and what an error answers; each module needs its extra."""
