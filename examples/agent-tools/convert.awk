# {"miles": 26.2} on standard input.
{ match($0, /[0-9.]+/); printf "%.1f km\n", substr($0, RSTART, RLENGTH) * 1.609344 }
