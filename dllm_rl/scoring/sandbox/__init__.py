"""Runs code that a model wrote, and judges it where that code cannot reach.

Three processes per run, none of them the caller's:

    supervisor   a fresh interpreter: makes the namespaces, starts the judge, kills everything at the deadline
    judge        process 1 of its own pid namespace: runs the tests and alone can write the verdict
    candidate    its child: runs the model's code and answers calls over a pipe

The candidate holds neither the tests nor what they expect, and its answers reach the judge as plain data. Hence nothing
that it prints, patches, exits with or overloads is a verdict; the most it can do is return values.
"""
