"""The only SQL of the project: the ledger of runs, dead letters and workflows, the tallies and the cursors.

``script`` holds what a transaction is, ``schema`` the tables, ``ingest`` the one transaction everything observed goes
through, ``ledger`` the door the rest of the program uses, ``sqlite`` the engine.
"""
