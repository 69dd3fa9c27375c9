"""The list of threats as a suite: each attack shown to succeed without a sandbox, and tried in each."""
