#!/bin/bash
# Puts an empty /tmp over the machine's, in this mount namespace. What is named stays to be seen.
set -euo pipefail
mount -t tmpfs tmpfs /media
for kept in "$@"; do
  case $kept in
    /tmp/*)
      mkdir -p "/media/${kept#/tmp/}"
      mount --rbind "$kept" "/media/${kept#/tmp/}"
      ;;
  esac
done
mount --move /media /tmp
chmod 1777 /tmp
