"""What stands between this machine and a run: findings, each with what to do."""
