"""Query plans of Prisma 7's compiler, interpreted: what Accelerate did with @prisma/query-plan-executor. Pure, but for `session`.

A client that has no database of its own at hand (`accelerateUrl`) compiles a query into a plan, a tree of JSON, and sends that. Its
leaves are SQL; the other nodes join, sort, check and name what came. A node that isn't known here is refused by name: plans have no
version of their own. What a plan may cost is bounded where it is read (`rendering`, `session`): nothing in it is trusted.
"""
