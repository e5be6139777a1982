"""A whole farm on one machine: a head, nodes as separate processes, shaped links between them.

Used by the stories and by the benchmarks. Nothing here replaces a part: broker, controller, seeder
and agents are the real commands.
"""
