"""What runs leave behind, read again: pictures of one run, and a page that compares several."""

from embedloss.reporting.page import write_page
from embedloss.reporting.runs import Run, read_run

__all__ = ["Run", "read_run", "write_page"]
