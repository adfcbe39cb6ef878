"""Names to pipelines: devices, adapters, and the files of what was learned."""
