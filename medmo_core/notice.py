"""The one sentence that stands under every output that a clinician might see."""

RESEARCH_ONLY = "Research use only: not a medical device, not for diagnosis."
SHORT_NOTICE = "research use only"
"""The same where a line has room for three words."""
