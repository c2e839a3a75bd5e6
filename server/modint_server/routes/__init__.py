"""The routes, one file each. No other path of the engine can be reached through the gateway."""

READ = ["GET", "HEAD"]  # balancers and monitors ask with HEAD
