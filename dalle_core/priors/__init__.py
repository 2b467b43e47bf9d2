"""The priors, p(image tokens | text): one file an architecture, and what they share of attention and caches (`rows.py`)."""
