"""The laws of loading."""

from __future__ import annotations

from assay.audits.components.loading import path_laws, quantisation_laws

LAWS = (*path_laws.LAWS, *quantisation_laws.LAWS)
