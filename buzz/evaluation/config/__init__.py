"""The language of configs; which keys there are, each room says in its `section.py`.

Read `schema`, where a dataclass becomes the rules of a section, and `methods`, which every config has. `reading` goes
from files and overrides to plain data, `dialect` is the YAML in them. `cli` lists the packaged configs.
"""
