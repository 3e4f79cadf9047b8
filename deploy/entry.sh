#!/bin/sh
# Entry of the image: run the app within its time limit, or a command of the SDK's `tools`.
# Exit status: that of the app; 124 if the limit ended it, 137 if it had to be killed 30 seconds later.
case "${1:-}" in
    extract | env | help) exec bash /var/holoscan/tools "$@" ;;
    show) exec cat "$HOLOSCAN_APP_MANIFEST_PATH" "$HOLOSCAN_PKG_MANIFEST_PATH" ;;
esac
ulimit -s 32768 2>/dev/null || true  # the stack that holoscan asks for
exec timeout --kill-after=30 "$HOLOSCAN_TIMEOUT" python3 "$HOLOSCAN_APPLICATION" "$@"
