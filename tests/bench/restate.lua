-- Restate's ingress takes the argument as a body.
wrk.method = "POST"
wrk.body = '"Ada"'
wrk.headers["content-type"] = "application/json"
