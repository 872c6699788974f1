#!/bin/bash
# A host, as PID 1 of its own network, process, mount, name and IPC namespaces: `ray stop`, which
# ends Ray's processes by name, and everything that Ray keeps in /tmp stay inside.
# Arguments: name, address/prefix length, what Ray finds on it (JSON), the site's directory, the
# home directory, then directories to keep although they are in /tmp.
set -euo pipefail
name=$1 address=$2 resources=$3 site=$4 home=$5
shift 5

hostname "$name"
mount --make-rprivate /
"$(dirname "$0")/empty_tmp.sh" "$site" "$@"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd
cp -r "$site/skeleton" "$home"
echo "export RAY_OVERRIDE_RESOURCES='$resources'" >> "$home/.bashrc"

ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add "$address" dev eth0
ip link set eth0 up
# To nowhere: Ray learns its own address from the route that a packet to the internet would take.
ip route add default via "${address%.*}.1"

exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/sshd -D -e -f "$site/sshd_config"
