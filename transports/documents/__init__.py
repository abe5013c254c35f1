"""Configuration documents: reading them from a URL, their formats, and what may stand in them.

Imported when the first one is named: most programs have none.
"""

from __future__ import annotations

from ._document import ConfigurationDocument, ProviderTable
from ._renewal import DocumentRenewal

__all__ = ["ConfigurationDocument", "DocumentRenewal", "ProviderTable"]
