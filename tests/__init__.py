"""The tests. unit/ holds what needs no process, no network and no clock; integration/ runs a real Torpor with a real PostgreSQL."""
