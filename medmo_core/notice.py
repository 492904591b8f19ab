"""The sentence that stands under every output that a clinician might see, and its shorter forms."""

RESEARCH_ONLY = "Research use only: not a medical device, not for diagnosis."
PICTURE_NOTICE = "Research use only. Not for diagnosis."
"""The same where it is drawn on a picture."""
PAGE_NOTICE = "Research use only."
"""The same on a page of results, which shows no patient."""
SHORT_NOTICE = "research use only"
"""The same where a line has room for three words."""
