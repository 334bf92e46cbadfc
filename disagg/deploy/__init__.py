"""`disagg deploy`: what puts a deployment on a scheduler, rendered from the deployment's own YAML."""
