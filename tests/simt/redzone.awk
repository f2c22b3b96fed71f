# Puts 128 bytes behind every thread-local variable of a function (static shared memory): the machine knows where each
# one ends by its symbol, so an access into the gap is out of bounds.
/^\t\.section\t/ { tls = $2 ~ /^\.tbss/ }
/^\t\.(text|data|bss)$/ { tls = 0 }
{ print }
/^_ZZ.*:$/ && tls { label = 1; next }
/^\t\.zero\t/ && label { print "\t.zero\t128" }
{ label = 0 }
