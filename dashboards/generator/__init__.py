"""Makes the Grafana dashboards beside this folder: `make dashboards`. For development only.

``overview``, ``workflow``, ``dead_letters`` and ``service`` say what each dashboard shows, ``queries`` holds the pieces
of PromQL they share, ``panels`` turns all of it into Grafana's JSON. Names of metrics come from where the metrics are
made, so that renaming one breaks this and not somebody's screen.
"""
