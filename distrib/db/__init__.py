"""The head node's database: tables, transactions, migrations (docs/formats/head-state.md)."""
