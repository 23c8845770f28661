"""The benchmark: what a cold, a warm and a crowded start cost, beside what they replace."""
