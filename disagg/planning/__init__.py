"""From a deployment to its engines: arguments, places, memory, lanes. Nothing is started."""
