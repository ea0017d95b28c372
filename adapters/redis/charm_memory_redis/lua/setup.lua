-- KEYS: the format's. ARGV: the format of this release. Answers the one that is there.

call('SET', KEYS[1], ARGV[1], 'NX')
return call('GET', KEYS[1])
