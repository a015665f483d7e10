"""The rewrites of `simplify`, by subject. Each takes a `Scope` and says what it changed, one line a place."""
