"""Experience: what becomes of rollouts between the engine and the update."""
