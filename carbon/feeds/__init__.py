"""Sources of carbon intensity, one file each, behind `carbon.feeds.feed.Feed`."""
