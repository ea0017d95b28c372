"""The commands and their options, by what they are for. What they do is imported when they run."""
