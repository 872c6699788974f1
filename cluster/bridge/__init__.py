"""From an orchestrator's job to its answer: registration, admission, running, delivery."""
