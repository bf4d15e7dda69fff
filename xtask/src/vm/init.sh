#!/bin/busybox sh
# The guest's first process: mounts what a host has, runs each test program, says how each ended, powers off.
# copies of the host's programs come before the applets of busybox, which are all in /bin
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export ENFORCER_TEST_EMULATED=1 # fewer rounds of what is done again and again
/bin/busybox --install -s /bin
ln -s /bin/modprobe /sbin/modprobe # where the kernel looks for it when a socket wants a module
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security
ip link set lo up
echo "guest: $(uname -r), security modules $(cat /sys/kernel/security/lsm)," \
    "lockdown $(cat /sys/kernel/security/lockdown), up since $(cut -d ' ' -f 1 /proc/uptime) s"
# a line each: name, directory, program
while read -r name directory program <&3; do
    echo "guest: begin $name"
    # shellcheck disable=SC2046 # each word is an argument
    (cd "$directory" && exec "$program" $(cat /words) </dev/null)
    echo "guest: end $name $?"
done 3</suites
poweroff -f
