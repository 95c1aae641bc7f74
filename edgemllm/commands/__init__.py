"""What each command does, a folder each."""
