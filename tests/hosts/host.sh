#!/bin/bash
# A host, as PID 1 of its own network, process, mount, name and IPC namespaces: `ray stop`, which
# ends Ray's processes by name, and everything that Ray keeps in /tmp stay inside.
# Arguments: name, address/prefix length, then directories to keep although they are in /tmp.
set -euo pipefail
name=$1 address=$2
shift 2

hostname "$name"
mount --make-rprivate /
"$(dirname "$0")/private_tmp.sh" "$@"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /home
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /home/livepeer
cp -r /mnt/skeleton/. /home/livepeer

ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add "$address" dev eth0
ip link set eth0 up
# To nowhere: Ray learns its own address from the route that a packet to the internet would take.
ip route add default via "${address%.*}.1"

exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/sshd -D -e -f /mnt/sshd_config
