#!/bin/bash
# usage: rgw-down.sh DIR    gateway first and waited for: it hangs if its OSD goes away before it
for x in rgw osd mon; do p=$(cat "$1/$x.pid"); kill $p 2>/dev/null
  for i in $(seq 60); do kill -0 $p 2>/dev/null || break; sleep 0.1; done; kill -9 $p 2>/dev/null; done; rm -rf "$1"
