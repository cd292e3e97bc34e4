"""HQ-ACF: from annotated photographs to a packed set of high-quality crops of people."""
