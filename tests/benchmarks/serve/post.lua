-- wrk: send one body again and again. Arguments: the body's file, then header lines.
function init(args)
   local file = io.open(args[1], "rb")
   wrk.method, wrk.body = "POST", file:read("*a")
   file:close()
   for index = 2, #args do
      local name, value = args[index]:match("^(.-): (.*)$")
      wrk.headers[name] = value
   end
end

function done(summary, latency, requests)
   local errors = summary.errors
   local failed = errors.connect + errors.read + errors.write + errors.timeout + errors.status
   io.write(string.format(
      '\n{"requests": %d, "failed": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f}\n',
      summary.requests, failed, summary.duration / 1e6,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
   ))
end
