"""For whom a rollout may stop: what Prometheus and the database say of it, and one verdict over that."""
