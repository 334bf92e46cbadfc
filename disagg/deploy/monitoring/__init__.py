"""Prometheus and Grafana for a deployment: what to scrape, when to alert, what to look at.

Way:   addresses of frontends -> [render_monitoring] -> files for Prometheus and Grafana, by their paths in one folder
Owns:  nothing: a test holds that every metric that they name is told by a frontend that runs
"""

from __future__ import annotations

from disagg.deploy.monitoring.render import MonitoringOptions, problems_of_monitoring, render_monitoring

__all__ = ["MonitoringOptions", "problems_of_monitoring", "render_monitoring"]
