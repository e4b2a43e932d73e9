"""How a network is trained to the end: schedules, optimisers, drop path, state to resume from, the papers' settings."""
