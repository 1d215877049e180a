"""Which evaluations to run: protocols, and the study that runs, keeps and logs them."""
